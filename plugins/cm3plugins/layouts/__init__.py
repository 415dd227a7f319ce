"""The bundled layout, CM3leon's. cm3published has those of published models."""
