"""Vision networks shared by several plugins."""
