# What every unit of Lares gives up. A unit takes back what it needs, next to the reason why.
{ lib }:
{
  # Addresses the unit may exchange packets with: a list of what `IPAddressAllow=` takes, or "any" for no filter.
  addresses ? [ ],
  # The user, where it may be a person.
  user ? null,
}:
{
  # Privileges
  AmbientCapabilities = "";
  CapabilityBoundingSet = "";
  NoNewPrivileges = true;
  PrivateUsers = true;
  RestrictSUIDSGID = true;

  # File system
  PrivateMounts = true;
  PrivateTmp = true;
  ProtectHome = true;
  ProtectSystem = "strict";
  UMask = "0077";

  # Kernel and devices
  DevicePolicy = "closed";
  PrivateDevices = true;
  ProtectClock = true;
  ProtectControlGroups = true;
  ProtectHostname = true;
  ProtectKernelLogs = true;
  ProtectKernelModules = true;
  ProtectKernelTunables = true;

  # Other processes
  KeyringMode = "private";
  ProcSubset = "pid";
  ProtectProc = "invisible";
  # A person's own shared memory has to survive the units that run as that person.
  RemoveIPC = user == null || user == "lares";

  # System calls
  LockPersonality = true;
  MemoryDenyWriteExecute = true;
  RestrictNamespaces = true;
  RestrictRealtime = true;
  SystemCallArchitectures = "native";
  SystemCallErrorNumber = "EPERM";
  SystemCallFilter = [
    "@system-service"
    "~@privileged"
  ];

  # Network: AF_UNIX carries PostgreSQL, journald and the readiness notification.
  RestrictAddressFamilies = [
    "AF_INET"
    "AF_INET6"
    "AF_UNIX"
  ];
}
// lib.optionalAttrs (addresses != "any") {
  IPAddressDeny = "any";
  IPAddressAllow = [ "localhost" ] ++ addresses;
}
