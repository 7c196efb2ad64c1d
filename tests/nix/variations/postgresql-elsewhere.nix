# A database that somebody else runs, without a password in its URL.
{
  module.services.lares = {
    database.createLocally = false;
    store = {
      url = "postgresql://lares@db.internal/lares";
      poolSize = 3;
      connectTimeout = "2s";
    };
  };
  settings.store = {
    url = "postgresql://lares@db.internal/lares";
    pool_size = 3;
    connect_timeout = "2s";
  };
  units."lares-setup.service".lacks = [ "postgresql.target" ];
  units."lares-coordinator.service".lacks = [ "postgresql.target" ];
  config.services.postgresql.enable = false;
}
