"""The bundled implementations; they register exactly as a third party's do."""
