# A database on a private network: the units that use it reach it, and nothing else.
{
  module.services.lares = {
    allowedAddresses = [ "10.77.0.0/24" ];
    database.createLocally = false;
    store.url = "postgresql://lares@10.77.0.1/lares";
  };
  units = {
    "lares-setup.service".has = [
      "IPAddressDeny=any"
      "IPAddressAllow=10.77.0.0/24"
    ];
    "lares-coordinator.service".has = [ "IPAddressAllow=10.77.0.0/24" ];
    "lares-ralph.service".has = [ "IPAddressAllow=10.77.0.0/24" ];
    "lares-llama-coder.service".lacks = [ "10.77.0.0" ];
  };
}
