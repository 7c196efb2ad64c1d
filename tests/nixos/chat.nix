# A real model answers through the coordinator, whole and as a stream, and over its other names.
{
  nodes.machine =
    { pkgs, ... }:
    {
      services.lares.models.coder = {
        path = import ./tiny-model.nix { inherit pkgs; };
        aliases = [ "gpt-4o" ];
        contextSize = 2048;
        slots = 2;
      };
      services.lares.ralph.enable = false;
    };

  testScript = ''
    import json

    machine.wait_for_unit("lares-coordinator.service", timeout=300)
    machine.wait_for_unit("lares-llama-coder.service", timeout=300)
    machine.succeed("as-lares lares key create laptop --role client --file /var/lib/lares/laptop.key")
    machine.succeed("cp /var/lib/lares/laptop.key /root/laptop.key")


    def ask(body):
        return (
            "curl --fail --silent --max-time 120 http://127.0.0.1:8092/v1/chat/completions"
            " -H 'Content-Type: application/json' -H \"Authorization: Bearer $(cat /root/laptop.key)\""
            f" -d '{json.dumps(body)}'"
        )


    question = {"model": "coder", "max_tokens": 16, "messages": [{"role": "user", "content": "Say hello."}]}

    with subtest("the models are listed, with their aliases"):
        models = machine.succeed(
            "curl --fail --silent http://127.0.0.1:8092/v1/models"
            " -H \"Authorization: Bearer $(cat /root/laptop.key)\""
        )
        assert '"coder"' in models, models

    with subtest("an answer as a whole"):
        answer = json.loads(machine.succeed(ask(question)))
        assert answer["choices"][0]["message"]["role"] == "assistant", answer
        assert answer["usage"]["completion_tokens"] > 0, answer

    with subtest("an answer as a stream, by another name"):
        stream = machine.succeed(ask(question | {"model": "gpt-4o", "stream": True}))
        assert stream.count("data: ") > 2 and "data: [DONE]" in stream, stream

    with subtest("a model that is not there"):
        status = machine.succeed(ask(question | {"model": "none"}).replace("--fail", "--output /dev/null -w '%{http_code}'"))
        assert status == "404", status

    with subtest("llama-server itself does not answer without its key"):
        status = machine.succeed(
            "curl --silent --output /dev/null -w '%{http_code}' http://127.0.0.1:8080/v1/chat/completions -d '{}'"
        )
        assert status == "401", status
  '';
}
