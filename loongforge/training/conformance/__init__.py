"""`loongforge backends verify`: does a backend compute what it promises? Each stage in processes of its own."""
