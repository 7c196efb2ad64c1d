{
  module.services.lares = {
    qdrant.createLocally = false;
    store.vectors = {
      backend = "qdrant";
      url = "https://qdrant.internal:6334";
      apiKeyFile = "/run/secrets/qdrant.key";
    };
  };
  settings.store.vectors.url = "https://qdrant.internal:6334";
  units."lares-coordinator.service" = {
    has = [ ":/run/secrets/qdrant.key" ];
    lacks = [ "qdrant.service" ];
  };
  config.services.qdrant = { };
}
