package api

import (
	"net/netip"
	"time"
)

// AttachRequest asks for a pod's interface. (Network, ContainerID, IfName) names the attachment.
type AttachRequest struct {
	ContainerID  string `json:"container_id"`
	IfName       string `json:"ifname"`
	Netns        string `json:"netns"`   // path of the pod's network namespace
	Network      string `json:"network"` // the CNI network's name
	PodNamespace string `json:"pod_namespace,omitempty"`
	PodName      string `json:"pod_name,omitempty"`

	// IPs are the addresses asked for, at most one a family; outside the node's prefixes they are
	// refused. The length of the prefix does not matter.
	IPs []netip.Prefix `json:"ips,omitempty"`
	MAC string         `json:"mac,omitempty"` // "" = any
	MTU int            `json:"mtu,omitempty"` // bytes; 0 = the inner MTU, which it must not exceed

	// Delegated are addresses that another IPAM has given out: the daemon then allocates nothing.
	Delegated []DelegatedIP `json:"delegated,omitempty"`

	Routes []netip.Prefix `json:"routes,omitempty"` // of the pod, besides the default route
}

// AnnounceRequest says that another IPAM is about to give out addresses for an attachment.
type AnnounceRequest struct {
	ContainerID string `json:"container_id"`
	IfName      string `json:"ifname"`
	Netns       string `json:"netns"`
	Network     string `json:"network"`
}

// DelegatedIP is an address from another IPAM.
type DelegatedIP struct {
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

// AttachResult is a pod's interface as it stands.
type AttachResult struct {
	HostInterface string       `json:"host_interface"`
	PodInterface  PodInterface `json:"pod_interface"`
	IPs           []PodIP      `json:"ips"`
	Routes        []PodRoute   `json:"routes"`
	MTU           int          `json:"mtu"` // bytes
}

// PodInterface is the end of the link that the pod sees.
type PodInterface struct {
	Name  string `json:"name"`
	MAC   string `json:"mac"`
	Netns string `json:"netns"`
}

// PodIP is an address of a pod with its gateway.
type PodIP struct {
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

// PodRoute is a route in the pod's namespace.
type PodRoute struct {
	Dst     netip.Prefix `json:"dst"`
	Gateway netip.Addr   `json:"gateway,omitzero"` // none = on the link
}

// DetachRequest asks to take a pod's interface away. Netns may be "" or gone. An attachment that is
// not there is no error.
type DetachRequest struct {
	ContainerID string `json:"container_id"`
	IfName      string `json:"ifname"`
	Netns       string `json:"netns,omitempty"`
	Network     string `json:"network"`

	// Keep leaves an attachment whose addresses are another IPAM's written down, as announced, until they are given back:
	// then it is detached once more, without Keep.
	Keep bool `json:"keep,omitempty"`
}

// CheckRequest asks whether an attachment is still as Expect says.
type CheckRequest struct {
	AttachRequest
	Expect AttachResult `json:"expect"`
}

// GCRequest names the attachments of a network that are still valid; all others of it go. A list that is missing is refused, an
// empty one is not.
type GCRequest struct {
	Network string       `json:"network"`
	Valid   []Attachment `json:"valid"`
}

// Attachment is an interface of a container.
type Attachment struct {
	ContainerID string `json:"container_id"`
	IfName      string `json:"ifname"`
}

// Pod is an attachment as the daemon keeps it.
type Pod struct {
	Network       string       `json:"network"`
	ContainerID   string       `json:"container_id"`
	IfName        string       `json:"ifname"`
	Netns         string       `json:"netns"`
	PodNamespace  string       `json:"pod_namespace"`
	PodName       string       `json:"pod_name"`
	HostInterface string       `json:"host_interface"`
	IPs           []netip.Addr `json:"ips"`
	MAC           string       `json:"mac"`
	Attached      bool         `json:"attached"` // false: announced, or an attach is under way, or was cut off
	Since         time.Time    `json:"since"`

	// Drops are packets of the pod's that the check on its link did not let in, by name; what is 0 is absent.
	Drops map[string]uint64 `json:"drops,omitempty"`
}

// PodStatus says whether pods can be attached.
type PodStatus struct {
	Ready  bool   `json:"ready"`
	Code   string `json:"code,omitempty"`   // why not: one of the Code constants
	Reason string `json:"reason,omitempty"` // the same in words
}

// Codes of the errors about pods. They are stable; the words around them are not.
const (
	CodeUnavailable = "unavailable"   // the daemon is not ready for pods (yet): try again later
	CodeExhausted   = "exhausted"     // no free address is left in the node's prefixes
	CodeNotInPrefix = "not-in-prefix" // an address asked for is not one this node may give out
	CodeExists      = "exists"        // the address, the interface or the attachment is there already
	CodeNoNetns     = "no-netns"      // the network namespace does not exist
	CodeNotFound    = "not-found"     // there is no such attachment
	CodeMismatch    = "mismatch"      // the attachment is not as it should be
	CodeInvalid     = "invalid"       // the request makes no sense
	CodeFailed      = "failed"        // anything else, a refusal of the kernel for example
)

// Error is a failure with a code. Every method of the client about pods returns one, possibly
// wrapped, for what the daemon refuses.
type Error struct {
	Code string
	Text string
}

func (e *Error) Error() string { return e.Text }
