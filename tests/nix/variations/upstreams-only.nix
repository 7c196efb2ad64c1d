# No local model at all: everything is asked of another machine, embeddings of tools too.
{
  bare = true;
  module.services.lares = {
    coordinator.upstreams.cluster = {
      url = "http://127.0.0.1:9000/v1";
      models.coder = "coder";
      models.embed = "embed";
    };
    tools.search = {
      embedding = "endpoint";
      model = "embed";
    };
  };
  absentPrefix = [
    "lares-llama-"
    "lares-model-"
  ];
  settings.coordinator.upstreams.cluster.max_in_flight = 8;
}
