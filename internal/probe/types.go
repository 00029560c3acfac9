package probe

import "time"

// A Handler is something done to a running container. One of its fields is set.
type Handler struct {
	Exec  []string      `json:"exec,omitempty"` // runs in the container; well is exit code 0
	HTTP  *HTTPGet      `json:"http,omitempty"` // well is a status of 200 to 399
	TCP   *TCPSocket    `json:"tcp,omitempty"`  // well is a connection
	GRPC  *GRPCCheck    `json:"grpc,omitempty"` // grpc.health.v1; well is SERVING
	Sleep time.Duration `json:"sleep,omitempty"`
}

// An HTTPGet is a request to a port of the pod.
type HTTPGet struct {
	HTTPS   bool        `json:"https,omitempty"` // any certificate will do
	Host    string      `json:"host,omitempty"`  // "": the pod
	Port    int         `json:"port"`
	Path    string      `json:"path"` // with a query, if any
	Headers [][2]string `json:"headers,omitempty"`
}

// A TCPSocket is a connection to a port of the pod.
type TCPSocket struct {
	Host string `json:"host,omitempty"` // "": the pod
	Port int    `json:"port"`
}

// A GRPCCheck is a health check of a gRPC server of the pod.
type GRPCCheck struct {
	Port    int    `json:"port"`
	Service string `json:"service,omitempty"`
}

// A Probe is a check made of a running container again and again.
type Probe struct {
	Handler
	InitialDelay     time.Duration `json:"initialDelay,omitempty"`
	Period           time.Duration `json:"period"`           // > 0
	Timeout          time.Duration `json:"timeout"`          // > 0
	SuccessThreshold int           `json:"successThreshold"` // >= 1
	FailureThreshold int           `json:"failureThreshold"` // >= 1
	Grace            *int          `json:"grace,omitempty"`  // seconds to stop in when it failed; nil: the container's
}

// Probes of a container; nil: none. A container that failed startup or liveness
// is killed, and restarted as its policy says; readiness only says whether it is ready.
type Probes struct {
	Startup   *Probe `json:"startup,omitempty"`
	Liveness  *Probe `json:"liveness,omitempty"`
	Readiness *Probe `json:"readiness,omitempty"`
}
