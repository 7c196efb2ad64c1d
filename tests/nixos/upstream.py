"""An OpenAI-compatible server that gives the answers it is told: a model without a model.

The answer to every chat is the file named on the command line. Each request is written to standard error, one JSON
object a line, so that a test can see in the journal what was asked.
"""

import http.server
import json
import sys

PORT, ANSWER = int(sys.argv[1]), sys.argv[2]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body, kind="application/json"):
        data = body.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.reply(json.dumps({"object": "list", "data": [{"id": "scripted", "object": "model"}]}))

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(json.dumps({"path": self.path, "model": request["model"]}), file=sys.stderr, flush=True)
        with open(ANSWER) as file:
            text = file.read()
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        message = {"role": "assistant", "content": text}
        answer = {"id": "chat-1", "created": 1, "model": request["model"]}
        if not request.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return self.reply(json.dumps(answer | {"object": "chat.completion", "choices": [choice], "usage": usage}))
        answer["object"] = "chat.completion.chunk"
        pieces = [
            answer | {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
            answer | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            answer | {"choices": [], "usage": usage},
        ]
        lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces] + ["data: [DONE]\n\n"]
        self.reply("".join(lines), "text/event-stream")


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
