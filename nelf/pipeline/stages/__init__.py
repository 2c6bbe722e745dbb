"""The stages of the chain: one function each, ``stage(run, **options) -> metrics``."""
