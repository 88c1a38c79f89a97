"""Correction of any recogniser's text: clear errors are replaced by characters that sound the same or nearly so."""
