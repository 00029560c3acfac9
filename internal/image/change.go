package image

import (
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	imagespec "github.com/moby/docker-image-spec/specs-go/v1"
)

// applyChange carries out one instruction of a Dockerfile that only changes the configuration.
func applyChange(c *imagespec.DockerOCIImageConfig, change string) error {
	word, args, _ := strings.Cut(strings.TrimSpace(change), " ")
	args = strings.TrimSpace(args)
	err := changeConfig(c, strings.ToUpper(word), args)
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("change %q: %v", change, err))
	}
	return nil
}

func changeConfig(c *imagespec.DockerOCIImageConfig, word, args string) error {
	if args == "" {
		return fmt.Errorf("%s requires an argument", word)
	}
	switch word {
	case "CMD":
		c.Cmd = commandLine(args)
	case "ENTRYPOINT":
		c.Entrypoint = commandLine(args)
	case "SHELL":
		return json.Unmarshal([]byte(args), &c.Shell)
	case "ENV":
		return eachPair(args, func(key, value string) { c.Env = setEnv(c.Env, key, value) })
	case "LABEL":
		return eachPair(args, func(key, value string) { c.Labels = put(c.Labels, key, value) })
	case "EXPOSE":
		for _, port := range strings.Fields(args) {
			number, _, _ := strings.Cut(port, "/")
			if _, err := strconv.ParseUint(number, 10, 16); err != nil {
				return fmt.Errorf("invalid port %q", port)
			}
			if number == port {
				port += "/tcp"
			}
			c.ExposedPorts = put(c.ExposedPorts, port, struct{}{})
		}
	case "VOLUME":
		volumes, ok := jsonList(args)
		if !ok {
			volumes = strings.Fields(args)
		}
		for _, v := range volumes {
			c.Volumes = put(c.Volumes, v, struct{}{})
		}
	case "USER":
		c.User = args
	case "WORKDIR":
		if !path.IsAbs(args) {
			args = path.Join("/", c.WorkingDir, args)
		}
		c.WorkingDir = path.Clean(args)
	case "STOPSIGNAL":
		c.StopSignal = args
	case "ONBUILD":
		c.OnBuild = append(c.OnBuild, args)
	case "HEALTHCHECK":
		return healthcheck(c, args)
	default:
		return fmt.Errorf("%s is not a valid change command", word)
	}
	return nil
}

func put[V any](m map[string]V, key string, value V) map[string]V {
	if m == nil {
		m = map[string]V{}
	}
	m[key] = value
	return m
}

func setEnv(env []string, key, value string) []string {
	for i, old := range env {
		if strings.HasPrefix(old, key+"=") {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

// commandLine is the JSON form, or the shell form that sh runs.
func commandLine(args string) []string {
	if list, ok := jsonList(args); ok {
		return list
	}
	return []string{"/bin/sh", "-c", args}
}

func jsonList(args string) ([]string, bool) {
	var list []string
	return list, strings.HasPrefix(args, "[") && json.Unmarshal([]byte(args), &list) == nil
}

// eachPair splits key=value pairs, whose values may be quoted, or the old form "key value".
func eachPair(args string, set func(key, value string)) error {
	words, err := splitWords(args)
	if err != nil {
		return err
	}
	if !strings.Contains(words[0], "=") {
		key, value, _ := strings.Cut(args, " ")
		if value = strings.TrimSpace(value); value == "" {
			return fmt.Errorf("%q is not key=value", args)
		}
		set(key, value)
		return nil
	}
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return fmt.Errorf("%q is not key=value", word)
		}
		set(key, value)
	}
	return nil
}

// splitWords splits at spaces; quotes and backslashes keep them, as in a Dockerfile.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	quote, escaped, inside := rune(0), false, false
	for _, c := range line {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, inside = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, inside = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if inside {
				words = append(words, word.String())
				word.Reset()
				inside = false
			}
		default:
			word.WriteRune(c)
			inside = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("quote is not closed")
	}
	if inside {
		words = append(words, word.String())
	}
	return words, nil
}

// healthcheck parses [--interval=…] CMD command, or NONE.
func healthcheck(c *imagespec.DockerOCIImageConfig, args string) error {
	h := &imagespec.HealthcheckConfig{}
	durations := map[string]*time.Duration{
		"--interval": &h.Interval, "--timeout": &h.Timeout, "--start-period": &h.StartPeriod, "--start-interval": &h.StartInterval,
	}
	word, rest, _ := strings.Cut(args, " ")
	for ; strings.HasPrefix(word, "--"); word, rest, _ = strings.Cut(strings.TrimSpace(rest), " ") {
		key, value, _ := strings.Cut(word, "=")
		var err error
		if d := durations[key]; d != nil {
			*d, err = time.ParseDuration(value)
		} else if key == "--retries" {
			h.Retries, err = strconv.Atoi(value)
		} else {
			err = fmt.Errorf("unknown option")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
	}
	rest = strings.TrimSpace(rest)
	switch strings.ToUpper(word) {
	case "NONE":
		h.Test = []string{"NONE"}
	case "CMD":
		if list, ok := jsonList(rest); ok {
			h.Test = append([]string{"CMD"}, list...)
		} else {
			h.Test = []string{"CMD-SHELL", rest}
		}
	default:
		return fmt.Errorf("%q is neither CMD nor NONE", word)
	}
	c.Healthcheck = h
	return nil
}
