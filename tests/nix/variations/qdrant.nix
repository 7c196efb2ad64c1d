{
  module.services.lares = {
    store.vectors = {
      backend = "qdrant";
      dimensions = 768;
    };
    # One that makes as many numbers.
    tools.search.model = "/srv/models/embed.gguf";
  };
  settings.store.vectors = {
    backend = "qdrant";
    dimensions = 768;
    url = "http://127.0.0.1:6334";
  };
  units."lares-coordinator.service".has = [ "qdrant.service" ];
  units."lares-tools.service".has = [ "qdrant.service" ];
  config.services.qdrant.enable = true;
}
