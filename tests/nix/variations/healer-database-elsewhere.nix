# A database somewhere else comes as a credential, as for the other daemons.
{
  module.services.lares = {
    database.createLocally = false;
    store.urlFile = "/run/secrets/lares-database";
  };
  units."lares-healer.service" = {
    has = [ "LoadCredential=store-url:/run/secrets/lares-database" ];
    lacks = [
      "postgresql"
      "LARES_STORE__URL="
    ];
  };
  settingsMatch."healer.units" = "(?!.*postgresql).*lares-coordinator.*";
  config.services.postgresql.identMap = "";
}
