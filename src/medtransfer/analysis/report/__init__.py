"""The report of a study: what it states, in every form."""
