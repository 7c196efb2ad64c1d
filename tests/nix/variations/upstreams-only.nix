# No local model at all: everything is asked of another machine.
{
  bare = true;
  module.services.lares.coordinator.upstreams.cluster = {
    url = "http://127.0.0.1:9000/v1";
    models.coder = "coder";
  };
  absentPrefix = [
    "lares-llama-"
    "lares-model-"
  ];
  settings.coordinator.upstreams.cluster.max_in_flight = 8;
}
