"""The documents run: what each block of a page is worth, by its language, and what all pages start from."""
