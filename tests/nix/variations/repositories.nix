# Ralph works on the repositories of a person: as that person, and seeing nothing else of their home.
{
  module = {
    users.users.ada = {
      isNormalUser = true;
      group = "users";
    };
    services.lares = {
      user = "ada";
      group = "users";
      ralph.repositories = [
        "/home/ada/src/app"
        "/home/ada/src/lib"
      ];
    };
  };
  settings.store.url = "postgresql:///ada?host=/run/postgresql";
  config.services.postgresql.ensureDatabases = [ "ada" ];
  units."lares-ralph.service" = {
    has = [
      "User=ada"
      "Group=users"
      "/home/ada/src/app"
      "/home/ada/src/lib"
      "ProtectHome=tmpfs"
    ];
  };
  units."lares-coordinator.service" = {
    has = [ "ProtectHome=true" ];
    lacks = [ "/home/ada" ];
  };
}
