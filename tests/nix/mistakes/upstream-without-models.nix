{
  title = "An upstream that serves no model";
  module.services.lares.coordinator.upstreams.cloud.url = "https://api.example.org/v1";
  message = ''
    services.lares.coordinator.upstreams.cloud names no model, so no request would reach it. Set for example services.lares.coordinator.upstreams.cloud.models.large = "name-at-the-provider".
  '';
}
