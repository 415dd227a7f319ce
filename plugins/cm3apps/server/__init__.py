"""`cm3 serve`: an HTTP server over the engine that speaks OpenAI's Images API, and a page to draw on.

From the bottom up: `settings` (limits), `errors` (the API's error shape), `fields` (what a request may
hold), `pictures` (bytes to pixels and back), `queueing` (who is next), `pool` (models by name), `tasks`
(a request's work on a model), `images_api` and `chat_api` (routes), `openapi`, `guard` (who may ask),
`http` (one request from its body to its answer), `app` (all of it), `running` (the process).
"""
