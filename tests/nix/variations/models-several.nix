# Ports are given in the order of names, so that adding a model changes nobody's port but those after it.
{
  module.services.lares.models = {
    "qwen2.5-coder-7b" = {
      path = "/srv/models/big.gguf";
    };
    embed = {
      path = "/srv/models/embed.gguf";
      embeddings = true;
      contextSize = 512;
    };
  };
  settings.models = {
    coder.port = 8080;
    embed.port = 8081;
    embed.embeddings = true;
    embed.context_size = 512;
    "qwen2.5-coder-7b".port = 8082;
  };
  units = {
    "lares-llama-embed.service".has = [ ''"serve" "llama" "embed"'' ];
    "lares-llama-qwen2.5-coder-7b.service".has = [ ''"serve" "llama" "qwen2.5-coder-7b"'' ];
    "lares.target".has = [
      "lares-llama-coder.service"
      "lares-llama-embed.service"
      "lares-llama-qwen2.5-coder-7b.service"
    ];
  };
}
