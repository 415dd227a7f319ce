"""Vision networks that several plugins share."""
