"""What a recipe may say, and how one is put together. No torch here."""
