"""The bundled layout, CM3leon's. cm3published adds layouts of published models."""
