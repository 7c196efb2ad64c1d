{
  title = "No database";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    database.createLocally = false;
  };
  message = ''
    services.lares.database.createLocally is false and no other database is named. Set
      services.lares.store.urlFile = "/run/secrets/…";   # a file with postgresql://user:password@host/database
    or, without a password, services.lares.store.url.
  '';
}
