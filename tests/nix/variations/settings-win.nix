# `settings` is the file itself: it wins over the typed options.
{
  module.services.lares = {
    ralph.workers = 2;
    settings.ralph.workers = 5;
    settings.coordinator.upstreams.raw = {
      url = "http://127.0.0.1:1234/v1";
      models.x = "y";
    };
  };
  settings.ralph.workers = 5;
  settings.coordinator.upstreams.raw.models.x = "y";
}
