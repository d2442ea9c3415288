package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

type workflow struct {
	On          map[string]any
	Permissions any
	Concurrency map[string]any
	Jobs        map[string]workflowJob
}

type workflowJob struct {
	Permissions map[string]string
	Environment string
	Timeout     int `yaml:"timeout-minutes"`
	Steps       []struct {
		Uses string
		Run  string
		With map[string]any
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
// Actions are pinned to commits, nobody gets rights without asking for them, and nothing
// runs for ever. The events are those whose workflow has no rights beyond its commit's:
// pull_request_target, for one, would run a stranger's change with those of main.
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
		for event := range w.On {
			if !slices.Contains([]string{"push", "pull_request", "schedule", "workflow_dispatch"}, event) {
				t.Errorf("%s: it runs on %s", name, event)
			}
		}
		if w.Concurrency["group"] == nil {
			t.Errorf("%s: two runs of it may get in each other's way; give it a concurrency group", name)
		}
		for job, j := range w.Jobs {
			if j.Timeout == 0 {
				t.Errorf("%s, %s: it has no timeout-minutes", name, job)
			}
			mayWrite(t, name, job, j)
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

// mayWrite holds a job that may write to running nothing that was built, downloaded or
// cached, and to the environment whose approval a maintainer can demand.
func mayWrite(t *testing.T, name, job string, j workflowJob) {
	t.Helper()
	writes := false
	for _, right := range j.Permissions {
		writes = writes || right == "write"
	}
	if !writes {
		return
	}
	if name != "release.yml" || j.Environment != "release" {
		t.Errorf("%s, %s: it may write, but is not in the environment release of release.yml", name, job)
	}
	known := []string{
		"actions/checkout", "actions/download-artifact", "actions/attest",
		"docker/setup-buildx-action", "docker/login-action", "docker/build-push-action",
	}
	for _, step := range j.Steps {
		action, _, _ := strings.Cut(step.Uses, "@")
		if step.Run != "" && step.Run != "scripts/publish" || step.Uses != "" && !slices.Contains(known, action) {
			t.Errorf("%s, %s: it may write, and runs %q; do that in a job that may not", name, job, step.Run+step.Uses)
		}
	}
}

// A release takes nothing from a cache that another workflow has filled.
func TestReleaseIsBuiltWithoutCache(t *testing.T) {
	var w workflow
	readYAML(t, ".github/workflows/release.yml", &w)
	for job, j := range w.Jobs {
		for _, step := range j.Steps {
			if strings.HasPrefix(step.Uses, "actions/setup-go@") && step.With["cache"] != false ||
				strings.HasPrefix(step.Uses, "actions/cache") {
				t.Errorf("%s: %s uses a cache", job, step.Uses)
			}
		}
	}
}

// A tag may have any name that git allows. No shell and no make runs it.
func TestReleaseDoesNotRunTheTag(t *testing.T) {
	dir := t.TempDir()
	for _, version := range []string{
		"v1.2.3-;touch${IFS}" + dir + "/shell",
		"v1.2.3-$(touch${IFS}" + dir + "/substitution)",
		"v1.2.3-$(shell${IFS}touch " + dir + "/make)",
		"v1.2.3-$(shell touch " + dir + "/make)",
	} {
		for _, arguments := range [][]string{{"make", "release"}, {"scripts/release-check"}} {
			cmd := exec.Command(arguments[0], arguments[1:]...)
			cmd.Dir = root
			cmd.Env = append(os.Environ(), "VERSION="+version)
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "is not of the form v1.2.3") {
				t.Errorf("%v of %q: %v, want a refusal of the version:\n%s", arguments, version, err, out)
			}
		}
	}
	if made, _ := filepath.Glob(dir + "/*"); len(made) > 0 {
		t.Errorf("a tag was run: %v", made)
	}
}

// A tag releases what is on main and in the changelog, and nothing else.
func TestReleaseCheck(t *testing.T) {
	dir := t.TempDir()
	git := func(arguments ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "tag.gpgSign=false", "-c", "commit.gpgSign=false"}, arguments...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", arguments, err, out)
		}
	}
	if err := os.Mkdir(dir+"/scripts", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, script := range []string{"scripts/release-check", "scripts/publish"} {
		text, err := os.ReadFile(root + script)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, script), text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	changelog := "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-01\n\nSomething.\n\n## [1.2.2] - 2025-01-01\n"
	if err := os.WriteFile(dir+"/CHANGELOG.md", []byte(changelog), 0o644); err != nil {
		t.Fatal(err)
	}
	git("init", "--quiet", "--initial-branch=main")
	git("add", ".")
	git("commit", "--quiet", "--message=main")
	git("update-ref", "refs/remotes/origin/main", "HEAD")
	git("tag", "--annotate", "--message=ok", "v1.2.3")
	git("tag", "v1.2.4")
	git("tag", "v01.2.3")
	check := func(version, want string) {
		t.Helper()
		cmd := exec.Command(dir + "/scripts/release-check")
		cmd.Env = append(os.Environ(), "VERSION="+version)
		out, err := cmd.CombinedOutput()
		if (err == nil) != (want == "Something.") || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, want %q:\n%s", version, err, want, out)
		}
	}
	check("v1.2.3", "Something.")
	check("v1.2.4", "CHANGELOG.md says nothing of 1.2.4")
	check("v1.2.5", "there is no tag v1.2.5")
	check("v01.2.3", "not of the form")
	git("commit", "--quiet", "--allow-empty", "--message=elsewhere")
	check("v1.2.3", "check out the tag")
	git("tag", "--force", "v1.2.3")
	check("v1.2.3", "is not on main")
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
		if strings.Contains(path, "/migration/traefik/") {
			return nil // stand-ins, which depend on nothing
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
