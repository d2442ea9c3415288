package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

type workflow struct {
	Permissions any
	Jobs        map[string]struct {
		Steps []struct {
			Uses string
			Run  string
			With map[string]any
		}
	}
}

func readYAML(t *testing.T, path string, to any) {
	t.Helper()
	text, err := os.ReadFile(root + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, to); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// What the workflows run is what people run at home: a target of the Makefile or a
// script of this repository, without arguments that a workflow makes up by the way.
// Actions are pinned to commits, and nobody gets rights without asking for them.
func TestWorkflows(t *testing.T) {
	makefile, err := os.ReadFile(root + "Makefile")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(root + ".github/workflows/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d workflows, %v", len(files), err)
	}
	pinned := regexp.MustCompile(`^[\w.-]+/[\w.-]+@[0-9a-f]{40}$`)
	for _, file := range files {
		name := filepath.Base(file)
		var w workflow
		readYAML(t, ".github/workflows/"+name, &w)
		if rights, ok := w.Permissions.(map[string]any); !ok || len(rights) != 1 || rights["contents"] != "read" {
			t.Errorf("%s: the permissions of all jobs are %v, want contents: read alone", name, w.Permissions)
		}
		for job, j := range w.Jobs {
			for _, step := range j.Steps {
				if step.Uses != "" && !pinned.MatchString(step.Uses) {
					t.Errorf("%s, %s: %s is not pinned to a commit", name, job, step.Uses)
				}
				if strings.HasPrefix(step.Uses, "actions/checkout@") && step.With["persist-credentials"] != false {
					t.Errorf("%s, %s: the checkout leaves its token to all later steps", name, job)
				}
				if step.Run != "" {
					runsWhatThereIs(t, name+", "+job, step.Run, string(makefile))
				}
			}
		}
	}
}

func runsWhatThereIs(t *testing.T, where, run, makefile string) {
	t.Helper()
	words := strings.Fields(run)
	switch {
	case strings.ContainsAny(run, "\n$;&|<>"):
		t.Errorf("%s: %q is a program of its own; put it into scripts/", where, run)
	case words[0] == "make" && len(words) == 2:
		if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(words[1]) + `:`).MatchString(makefile) {
			t.Errorf("%s: %q, and the Makefile has no such target", where, run)
		}
	case strings.HasPrefix(words[0], "scripts/"):
		if info, err := os.Stat(root + words[0]); err != nil || info.Mode()&0o100 == 0 {
			t.Errorf("%s: %q is not there to be run: %v", where, run, err)
		}
	default:
		t.Errorf("%s: %q is neither a target of the Makefile nor a script of this repository", where, run)
	}
}

// Whatever has dependencies of its own is kept up to date.
func TestDependabotKnowsAllModules(t *testing.T) {
	var config struct {
		Updates []struct {
			Ecosystem   string `yaml:"package-ecosystem"`
			Directory   string
			Directories []string
		}
	}
	readYAML(t, ".github/dependabot.yml", &config)
	known := make(map[string][]string)
	for _, u := range config.Updates {
		known[u.Ecosystem] = append(known[u.Ecosystem], append(u.Directories, u.Directory)...)
	}
	ecosystems := map[string]string{"go.mod": "gomod", "package.json": "npm", "Dockerfile": "docker", "compose.yaml": "docker-compose"}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git" || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		ecosystem, ok := ecosystems[d.Name()]
		if !ok {
			return nil
		}
		folder, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		if folder = filepath.Join("/", folder); !slices.Contains(known[ecosystem], folder) {
			t.Errorf("%s is not in .github/dependabot.yml, among %v of %s", path, known[ecosystem], ecosystem)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
