#!/bin/sh
# The reference once more, for -exit-root: stock wireguard-go on a kernel TUN, ip_forward, nft masquerade. See --help.
set -eu
dev=bench$$ # its control socket lies where those of all namespaces do

LOG_LEVEL=error WG_PROCESS_FOREGROUND=1 @WIREGUARD_GO@ -f "$dev" &
daemon=$!
until [ -S "/run/wireguard/$dev.sock" ]; do
	kill -0 "$daemon"
	sleep 0.05
done
wg setconf "$dev" /dev/stdin <<-CONF
	[Interface]
	PrivateKey = @PRIVATE_KEY@
	ListenPort = @PORT@
	[Peer]
	PublicKey = @CLIENT_KEY@
	AllowedIPs = @CLIENT_ADDRESS4@/32, @CLIENT_ADDRESS6@/128
CONF
ip addr add @ADDRESS4@/32 dev "$dev"
ip addr add @ADDRESS6@/128 dev "$dev" nodad
ip link set dev "$dev" mtu @MTU@ up
ip route add @CLIENT_ADDRESS4@/32 dev "$dev"
ip -6 route add @CLIENT_ADDRESS6@/128 dev "$dev"
nft -f - <<-RULES
	table inet nat {
		chain post {
			type nat hook postrouting priority srcnat;
			oifname "@OUTSIDE@" masquerade
		}
	}
	table inet clamp {
		chain forward {
			type filter hook forward priority mangle;
			tcp flags syn tcp option maxseg size set rt mtu
		}
	}
RULES
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
wait "$daemon"
