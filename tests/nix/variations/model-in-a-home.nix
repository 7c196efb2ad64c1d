# Homes are hidden from the units; a model file in one is shown to its server, and nothing else of it.
{
  bare = true;
  module.services.lares.models.coder.path = "/home/ada/models/coder.gguf";
  units = {
    "lares-llama-coder.service".has = [ "BindReadOnlyPaths=/home/ada/models/coder.gguf" ];
    "lares-coordinator.service".lacks = [ "/home/ada" ];
  };
}
