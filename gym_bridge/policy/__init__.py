"""One Policy protocol and its backends. No algorithm's name stands in here."""
