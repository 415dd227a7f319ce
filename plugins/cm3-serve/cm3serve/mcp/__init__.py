"""`cm3 mcp`: a server of the Model Context Protocol, by which agents search the memory, draw and edit."""
