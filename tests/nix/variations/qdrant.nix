{
  module.services.lares.store.vectors = {
    backend = "qdrant";
    dimensions = 768;
  };
  settings.store.vectors = {
    backend = "qdrant";
    dimensions = 768;
    url = "http://127.0.0.1:6334";
  };
  units."lares-coordinator.service".has = [ "qdrant.service" ];
  config.services.qdrant.enable = true;
}
