{
  title = "A duration without its unit";
  module.services.lares.coordinator.queueTimeout = 300;
  message = ''
    A definition for option `services.lares.coordinator.queueTimeout' is not of type `duration with its unit, such as "500ms", "30s", "5m" or "1h 30m"'.
  '';
}
