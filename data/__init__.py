"""Corpora, tokenizer training and sampling: everything between files of text and token arrays."""
