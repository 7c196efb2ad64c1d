# A worker: it takes tasks from a database that others share and asks a coordinator somewhere else.
{
  bare = true;
  module.services.lares = {
    coordinator.enable = false;
    database.createLocally = false;
    store.urlFile = "/run/secrets/database";
    agents.builtin.model = "coder";
    ralph = {
      coordinatorUrl = "https://control.internal/v1";
      coordinatorKeyFile = "/run/secrets/agent.key";
    };
  };
  absent = [ "lares-coordinator.service" ];
  settings.ralph.coordinator_url = "https://control.internal/v1";
  units."lares-ralph.service".has = [
    ":/run/secrets/agent.key"
    ":/run/secrets/database"
  ];
}
