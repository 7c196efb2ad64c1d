# What is set for a unit of Lares wins over what it has by itself; one is taken out.
{
  module.services.lares.healer.units = {
    "lares-ralph.service".enable = false;
    "lares-coordinator.service" = {
      keepRunning = true;
      probe.http = "http://127.0.0.1:8092/ready";
    };
  };
  settings.healer.units = {
    "lares-coordinator.service" = {
      keep_running = true;
      dependencies = [ "postgresql.service" ];
      probe.http = "http://127.0.0.1:8092/ready";
    };
    "postgresql.service".keep_running = false;
  };
  settingsMatch."healer.units" = "(?!.*lares-ralph).*lares-llama-coder.*";
}
