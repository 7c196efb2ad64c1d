# The module is imported and not enabled: it leaves no trace.
{
  bare = true;
  module.services.lares.enable = false;
  absentPrefix = [ "lares" ];
  config.services.postgresql.enable = false;
}
