{
  module.services.lares = {
    valkey.createLocally = false;
    store.cache = {
      backend = "redis";
      url = "redis://cache.internal:6379";
    };
  };
  settings.store.cache.url = "redis://cache.internal:6379";
  units."lares-coordinator.service".lacks = [ "redis-lares" ];
  config.services.redis.servers = { };
}
