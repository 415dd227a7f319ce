"""Models for others: `cm3 serve`, an HTTP server with OpenAI's Images API and a page to draw in, and `cm3 mcp`, tools for agents.

From the bottom up: `settings` (limits), `errors` (the API's error format), `fields` (the fields of requests),
`field_tables` (their documentation), `pictures` (bytes to pixels and back), `scheduling` (the queue, and models by
name), `tasks` (a request's work on a model), `images_api`, `chat_api` and `sets_api` (routes), `guard` (access and
connections), `http` (one request from its body to its response), `app` (all of it), `running` (the process). `ray` and `door`
spread it over several machines, `load` measures it; `mcp` has the tools. `plugin` registers both
commands; this module is light because they import it.
"""
