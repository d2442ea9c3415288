package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
)

// machine is what a run took place on.
type machine struct {
	CPU      string
	Cores    int
	Memory   string
	Kernel   string
	Versions []version
	Load     string // what made HTTP requests
}

type version struct{ Name, Version string }

// readMachine never fails: what cannot be told is unknown.
func readMachine(r *rig) machine {
	m := machine{CPU: "unknown", Cores: runtime.NumCPU(), Memory: "unknown", Kernel: "unknown"}
	if value := procField("/proc/cpuinfo", "model name"); value != "" {
		m.CPU = value
	}
	var kilobytes int64
	if _, err := fmt.Sscan(procField("/proc/meminfo", "MemTotal"), &kilobytes); err == nil {
		m.Memory = fmt.Sprintf("%.0f GiB", float64(kilobytes)/(1<<20))
	}
	if data, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(data))
	}
	m.Versions = append(m.Versions, version{"go", strings.TrimPrefix(runtime.Version(), "go")})
	for line := range strings.Lines(r.do("INFO", "server").(string)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "redis_version:"); ok {
			m.Versions = append(m.Versions, version{"redis-server", value})
		}
	}
	if output, err := exec.Command("node", "--version").Output(); err == nil {
		m.Versions = append(m.Versions, version{"node", strings.TrimPrefix(strings.TrimSpace(string(output)), "v")})
	}
	info, _ := debug.ReadBuildInfo()
	m.add(info, "github.com/redis/go-redis/v9")
	for _, s := range subjects {
		m.add(info, s.module)
	}
	m.add(info, "github.com/sethvargo/go-limiter")
	m.add(info, "github.com/gomodule/redigo")
	return m
}

// readCaddy adds what a Caddy was built from.
func (m *machine) readCaddy(program string) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return
	}
	m.add(info, "github.com/caddyserver/caddy/v2")
}

// add adds the version of a module of a program.
func (m *machine) add(info *debug.BuildInfo, module string) {
	if info == nil || module == "" {
		return
	}
	for _, dep := range info.Deps {
		if dep.Path == module {
			m.Versions = append(m.Versions, version{module, dep.Version})
		}
	}
}

// procField is the first value of a name in a file of /proc.
func procField(path, name string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
