# Checks that may use the network need a unit that may; nothing else is opened by it.
{
  module.services.lares = {
    agents.sandbox.checkNetwork = "host";
    agents.sandbox.write = [ "/var/cache/builds" ];
  };
  units = {
    "lares-ralph.service" = {
      has = [ "/var/cache/builds" ];
      lacks = [ "IPAddressDeny" ];
    };
    "lares-coordinator.service".has = [ "IPAddressDeny=any" ];
    "lares-llama-coder.service".has = [ "IPAddressDeny=any" ];
  };
}
