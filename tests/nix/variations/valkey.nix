{
  module.services.lares.store.cache = {
    backend = "redis";
    maxEntries = 500;
  };
  settings.store.cache = {
    backend = "redis";
    max_entries = 500;
  };
  units."lares-coordinator.service".has = [ "redis-lares" ];
  config.services.redis.servers.lares.enable = true;
}
