"""`prompt-tuning serve`: answers over HTTP from a frozen T5 behind the prompts of one folder.

What a request can do: list prompts, load one from the configured folder by its NAME, remove one from memory, have texts
answered, read health and metrics. Nobody is asked who they are, so the server listens on this machine alone unless told
otherwise; put a proxy that knows its users, and speaks TLS, in front of it before opening it to others.

What it cannot do: name a path (a NAME is letters, digits, `.`, `_` and `-`, not starting with a dot, looked up in one
folder), send a prompt or any other file, have anything unpickled or run (prompts are .safetensors or .npy read without
pickle), write or delete files (DELETE frees a slot in memory), make the model compile anything, hold more memory than
the limits allow (size of head and body, characters and tokens of a text, texts of a request, texts waiting), stay in
the middle of sending for long, or see a traceback (it stands in the server's log). Pages of other sites cannot call it:
no CORS headers are sent, and a body must be declared as JSON.
"""
