package tunnel

import (
	"fmt"
	"reflect"
	"sync"

	"golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/wgkey"
)

// queues measures what wireguard-go's queues hold. It has no method for that, so the fields of device.Peer are found by
// name, and read by nothing but len of a channel:
//
//	queue.inbound.c   batches from receive until the peer's receiver takes them
//	queue.outbound.c  batches from Read until the peer's sender takes them
//	queue.staged      batches that wait for a session, at most 128 for each peer
//
// A peer's receiver or sender takes a batch before it has been worked on, and one that is idle takes it at once: with many peers all
// are in such hands, and no queue of a peer holds any. So those of device.Device count too:
//
//	queue.decryption.c, queue.encryption.c  batches to be worked on
//
// The fields are set once, before the device or the peer is handed out. A release of wireguard-go that names them otherwise is found out by
// newQueues, and by the tests; packets in flight are not bounded then, as in wireguard-go itself.
type queues struct {
	decryption, encryption reflect.Value // channels

	mu    sync.Mutex // guards the following
	peers []peerQueues
	at    map[wgkey.Public]int // index in peers

	vanished int64 // packets lost on the way out since nothing was staged
}

type peerQueues struct {
	key                       wgkey.Public
	peer                      *device.Peer
	inbound, outbound, staged reflect.Value // channels
}

// newQueues fails if wireguard-go is not what it was.
func newQueues(dev *device.Device) (*queues, error) {
	if _, err := queuesOf(wgkey.Public{}, new(device.Peer)); err != nil {
		return nil, err
	}
	q := &queues{at: map[wgkey.Public]int{}}
	return q, findChannels("device.Device", dev, map[string]*reflect.Value{"decryption": &q.decryption, "encryption": &q.encryption})
}

// queuesOf finds the queues of a peer. Those of an empty peer have no channels, but types.
func queuesOf(key wgkey.Public, p *device.Peer) (peerQueues, error) {
	q := peerQueues{key: key, peer: p}
	return q, findChannels("device.Peer", p, map[string]*reflect.Value{"inbound": &q.inbound, "outbound": &q.outbound, "staged": &q.staged})
}

// findChannels finds the channels that the fields of of.queue are, or have as their field c.
func findChannels(name string, of any, fields map[string]*reflect.Value) error {
	all := reflect.ValueOf(of).Elem().FieldByName("queue")
	if all.Kind() != reflect.Struct {
		return fmt.Errorf("%s of wireguard-go has no queues: want a field queue", name)
	}
	for field, channel := range fields {
		v := all.FieldByName(field)
		if v.Kind() == reflect.Pointer && v.Type().Elem().Kind() == reflect.Struct {
			c, ok := v.Type().Elem().FieldByName("c")
			if !ok {
				return fmt.Errorf("%s of wireguard-go: queue.%s has no field c", name, field)
			}
			if v.IsNil() {
				v = reflect.Zero(c.Type)
			} else {
				v = v.Elem().FieldByIndex(c.Index)
			}
		}
		if v.Kind() != reflect.Chan {
			return fmt.Errorf("%s of wireguard-go: queue.%s is no channel", name, field)
		}
		*channel = v
	}
	return nil
}

// add watches the queues of a peer, which may be watched already.
func (q *queues) add(key wgkey.Public, p *device.Peer) {
	if q == nil || p == nil {
		return
	}
	n, err := queuesOf(key, p)
	if err != nil {
		return // newQueues has told
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if i, ok := q.at[key]; ok {
		q.peers[i] = n
		return
	}
	q.at[key] = len(q.peers)
	q.peers = append(q.peers, n)
}

// remove forgets a peer. What its queues hold still is wireguard-go's to free.
func (q *queues) remove(key wgkey.Public) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	i, ok := q.at[key]
	if !ok {
		return
	}
	last := len(q.peers) - 1
	q.peers[i] = q.peers[last]
	q.at[q.peers[i].key] = i
	q.peers[last] = peerQueues{}
	q.peers = q.peers[:last]
	delete(q.at, key)
}

// inbound returns how many batches wait to be decrypted or for the peers' receivers, at most: some wait for both.
func (q *queues) inbound() (batches int) {
	batches = q.decryption.Len()
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.peers {
		batches += q.peers[i].inbound.Len()
	}
	return batches
}

// outbound returns how many batches wait to be encrypted or for the peers' senders, at most: some wait for both.
func (q *queues) outbound() (batches int) {
	batches = q.encryption.Len()
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.peers {
		batches += q.peers[i].outbound.Len()
	}
	return batches
}

// stage is told that so many packets have vanished on the way out. Some of them may be staged, and are then in buffers all the same:
// no more than about limit packets shall be. Beyond that the peers for which the most batches wait lose them, as they lose their
// oldest to wireguard-go at 128 batches. A few batches are left alone: those of a peer whose handshake is on its way.
func (q *queues) stage(packets, limit int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.vanished += packets
	batches, peers := 0, 0
	for i := range q.peers {
		if n := q.peers[i].staged.Len(); n > 0 {
			batches += n
			peers++
		}
	}
	if batches == 0 {
		q.vanished = 0
	}
	if q.vanished < limit || int64(batches)*batchLen <= limit {
		return
	}
	for i := range q.peers {
		if n := q.peers[i].staged.Len(); n > 0 && n >= batches/peers {
			q.peers[i].peer.FlushStagedPackets()
		}
	}
	q.vanished = 0
}

// boundFlight begins to hold back what would be too much for the device, if its queues can be measured.
func (t *Tunnel) boundFlight() {
	q, err := newQueues(t.dev)
	if err != nil {
		t.wire.log.Warn("packets in flight are not bounded", keyErr, err)
		return
	}
	t.queues = q
	t.wire.in.queue.Store(&measure{q.inbound, func(int64) {}})
	t.wire.out.queue.Store(&measure{q.outbound, func(n int64) { q.stage(n, t.wire.out.limit) }})
}

// watchQueues measures the queues of a peer from here on.
func (t *Tunnel) watchQueues(key wgkey.Public) {
	if t.queues != nil {
		t.queues.add(key, t.dev.LookupPeer(device.NoisePublicKey(key)))
	}
}
