package dsas

import "time"

// Phase is where a node's latest boot is; it derives from events.
type Phase string

// The phases in the order of a good boot, then the ways out of it.
const (
	PhaseNew      Phase = "new"      // known, nothing heard yet
	PhasePower    Phase = "power"    // told to power-cycle, nothing heard since
	PhaseDHCP     Phase = "dhcp"     // the firmware asks for an address
	PhaseLoader   Phase = "loader"   // NBP or boot script taken
	PhaseKernel   Phase = "kernel"   // kernel and initramfs taken
	PhaseInit     Phase = "init"     // our init reports: network is up
	PhaseFetch    Phase = "fetch"    // the image is being fetched
	PhaseServices Phase = "services" // switched to the role's root, services start
	PhaseReady    Phase = "ready"
	PhaseFailed   Phase = "failed"
	PhaseLost     Phase = "lost" // was ready, heartbeats stopped
	PhaseOff      Phase = "off"  // powered off by the operator
)

// Phases gives the names of all phases.
func Phases() []string {
	var names []string
	for _, p := range []Phase{PhaseNew, PhasePower, PhaseDHCP, PhaseLoader, PhaseKernel, PhaseInit, PhaseFetch, PhaseServices, PhaseReady, PhaseFailed, PhaseLost, PhaseOff} {
		names = append(names, string(p))
	}
	return names
}

// Kind says what an event is about: "<who>.<what>".
type Kind string

// The kinds. Those that begin with "node." and have a boot come from the node
// itself, signed, but for lost, back, assigned and changed; without a boot it is
// the server that says it of the node.
const (
	KindDHCP         Kind = "dhcp.ack"       // address and boot file given
	KindRefused      Kind = "dhcp.refused"   // e.g. unknown architecture; message says why
	KindNBP          Kind = "tftp.nbp"       // boot loader sent
	KindScript       Kind = "boot.script"    // loader's script or configuration sent; a boot begins
	KindKernel       Kind = "boot.kernel"    // kernel sent
	KindInitramfs    Kind = "boot.initramfs" // initramfs sent
	KindConfigTaken  Kind = "boot.config"    // node config given for the token
	KindInit         Kind = "node.init"      // init is up with its network
	KindFetch        Kind = "node.fetch"     // begins to fetch the image
	KindFetched      Kind = "node.fetched"   // image unpacked
	KindPartBad      Kind = "node.part-bad"  // a part was refused: wrong digest
	KindConf         Kind = "node.conf"      // dsas.conf applied
	KindConfError    Kind = "node.conf-error"
	KindSwitched     Kind = "node.switched" // runs in the role's root
	KindService      Kind = "node.service"  // a service started, ended, became healthy or ill
	KindReady        Kind = "node.ready"
	KindFailed       Kind = "node.failed"
	KindLink         Kind = "node.link"  // a bond's active port changed
	KindFiles        Kind = "node.files" // rendered files changed and were applied
	KindWarning      Kind = "node.warning"
	KindLost         Kind = "node.lost"      // heartbeats stopped; said by the server
	KindBack         Kind = "node.back"      // heartbeats are back; said by the server
	KindInventory    Kind = "node.inventory" // what the box is; detail: JSON
	KindPower        Kind = "power"          // message: on, off, cycle, and who
	KindAssigned     Kind = "node.assigned"  // operator changed the role
	KindChanged      Kind = "node.changed"   // operator added or changed the node
	KindSiteChanged  Kind = "site.changed"
	KindUnknown      Kind = "unknown.seen"       // an unknown MAC was recorded for the first time
	KindPublished    Kind = "image.published"    // a role's nodes boot another release from now on
	KindCanary       Kind = "image.canary"       // some nodes try a release, or one of them is ready with it, or no longer one of them
	KindPromoted     Kind = "image.promoted"     // a canary was good: its release is published
	KindRolledBack   Kind = "image.rolled-back"  // a canary failed and was ended by the server: node and why
	KindCanaryEnded  Kind = "image.canary-ended" // a canary was ended for another reason than its nodes' boots
	KindServer       Kind = "server"
	KindLoaderFailed Kind = "boot.loader-failed"
	KindMenu         Kind = "boot.menu" // a role other than the assigned one was picked at the loader, for this boot
)

// Event is one fact about a node with a time.
type Event struct {
	ID       int64         `json:"id,omitempty"` // given by the store, ascending
	Time     time.Time     `json:"time"`
	Node     string        `json:"node,omitempty"`
	MAC      MAC           `json:"mac,omitzero"`
	Boot     string        `json:"boot,omitempty"` // id of the boot it belongs to
	Kind     Kind          `json:"kind"`
	Message  string        `json:"message,omitempty"`
	Duration time.Duration `json:"duration,omitempty"` // nanoseconds
	Bytes    int64         `json:"bytes,omitempty"`
	Detail   string        `json:"detail,omitempty"` // e.g. the end of a log
}

// PhaseAfter gives the phase a node is in after e, when it was in p before.
//
// What anyone on the boot network can bring about (an address, a loader, a
// script, a kernel) does not move a node whose services run: a real reboot is
// known by what the new boot signs, by silence (lost), or by the operator's own
// power command, after which such progress counts at once.
func PhaseAfter(p Phase, e Event) Phase {
	unproven := func(next Phase) Phase {
		if p == PhaseReady || p == PhaseServices {
			return p
		}
		return next
	}
	switch e.Kind {
	case KindDHCP:
		return unproven(PhaseDHCP)
	case KindNBP, KindScript, KindMenu:
		return unproven(PhaseLoader)
	case KindKernel, KindInitramfs:
		return unproven(PhaseKernel)
	case KindConfigTaken:
		return unproven(PhaseInit)
	case KindLoaderFailed:
		return unproven(PhaseFailed)
	case KindInit:
		return PhaseInit
	case KindFetch:
		return PhaseFetch
	case KindSwitched:
		return PhaseServices
	case KindReady, KindBack:
		return PhaseReady
	case KindFailed, KindPartBad:
		return PhaseFailed
	case KindLost:
		if p == PhaseReady || p == PhaseServices {
			return PhaseLost
		}
		return p
	case KindPower:
		if e.Message == PowerOff {
			return PhaseOff
		}
		return PhasePower
	}
	return p
}

// EventFilter selects events. The zero value selects all, from the oldest;
// answers are ascending by ID in any case.
type EventFilter struct {
	Node  string // of this node only
	Boot  string // of this boot only
	After int64  // with an ID greater than this
	Limit int    // at most so many; 0: the store's own limit
	Last  bool   // the last Limit ones instead of the first
}
