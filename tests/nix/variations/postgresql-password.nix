# A connection string with a password comes as a credential and never through the store.
{
  module.services.lares = {
    database.createLocally = false;
    store.urlFile = "/run/secrets/lares-database";
  };
  units = {
    "lares-setup.service".has = [ ":/run/secrets/lares-database" ];
    "lares-coordinator.service".has = [
      "LoadCredential="
      ":/run/secrets/lares-database"
    ];
    "lares-ralph.service".has = [ ":/run/secrets/lares-database" ];
    # Serving a model needs no database, so it gets no way into it.
    "lares-llama-coder.service".lacks = [ "lares-database" ];
  };
}
