"""Operations with reference implementations, and what a backend offers."""
