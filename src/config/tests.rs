use super::*;
use crate::target::Kind;
use crate::target::pace::Pacer;

fn parse(text: &str) -> Result<Config> {
    Config::from_toml(text, Path::new("t.toml"))
}

/// The whole error as the command line prints it.
fn complaint(text: &str) -> String {
    let error = parse(text).expect_err(text);
    format!("{error} | {}", error.hint.clone().unwrap_or_default())
}

fn argument(argument: &str) -> Result<TargetConfig> {
    TargetConfig::from_argument(argument)
}

#[test]
fn everything_can_be_set() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "hunter2\n").unwrap();
    let text = r#"
        name = "photos"
        mountpoint = "/mnt/photos"
        state_dir = "/var/lib/tandemfs/photos"
        chunk_size = "1 MiB"
        rotate = "2m"
        rotate_synced = "5s"
        shutdown_timeout = "1m 30s"
        [cache]
        limit = "64 GiB"
        reserve = "1 GB"
        [acknowledge]
        close = "local"
        fsync = "cached"
        deadline = "10s"
        [target.disk]
        uri = "fs:///mnt/backup"
        read_priority = 5
        concurrency = 8
        [target.aws]
        uri = "s3://bucket/some/prefix?region=eu-central-1"
        endpoint = "http://127.0.0.1:3900"
        enable_virtual_host_style = true
        access_key_id = "id"
        secret_access_key = { file = "secret" }
        layout = "chunks"
    "#;
    let config = Config::from_toml(text, &dir.path().join("t.toml")).unwrap();
    assert_eq!(config.name.as_deref(), Some("photos"));
    assert_eq!(config.mountpoint.as_deref(), Some(Path::new("/mnt/photos")));
    assert_eq!(config.chunk_size, 1 << 20);
    assert_eq!(config.cache, Cache { limit: Some(64 << 30), reserve: 1_000_000_000, ..Config::default().cache });
    assert_eq!((config.acknowledge.close, config.acknowledge.fsync), (Policy::Local, Policy::Cached));
    assert_eq!(config.acknowledge.deadline, Duration::from_secs(10));
    assert_eq!((config.rotate, config.rotate_synced), (Duration::from_secs(120), Duration::from_secs(5)));
    assert_eq!(config.shutdown_timeout, Duration::from_secs(90));
    let [aws, disk] = &config.targets[..] else { panic!("{:?}", config.targets) };
    assert_eq!((disk.read_priority, disk.concurrency), (5, Some(8)));
    assert_eq!(disk.location, Location::Directory("/mnt/backup".into()));
    assert_eq!(aws.uri, "s3://bucket/some/prefix?region=eu-central-1");
    let Location::Service { scheme, options } = &aws.location else { panic!("{aws:?}") };
    assert_eq!(scheme, "s3");
    let expected = [
        ("access_key_id", "id"),
        ("bucket", "bucket"),
        ("enable_virtual_host_style", "true"),
        ("endpoint", "http://127.0.0.1:3900"),
        ("region", "eu-central-1"),
        ("root", "/some/prefix"),
        ("secret_access_key", "hunter2"),
    ];
    assert_eq!(options.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    assert!(!format!("{config:?}").contains("hunter2"));
    for target in &config.targets {
        build(target, Pacer::default()).unwrap();
    }
}

#[test]
fn nothing_need_be_set() {
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn errors_name_the_line_and_the_nearest_key() {
    for (text, expected) in [
        ("\nchunksize = 1", "t.toml:2:1: unknown key \"chunksize\" | did you mean \"chunk_size\"?"),
        ("[cache]\n  limt = \"1 GiB\"", "t.toml:2:3: unknown key \"limt\" | did you mean \"limit\"?"),
        ("name = ", "t.toml:1:8: "),
        ("name = 5", "t.toml:1:8: invalid type: integer `5`, expected a string"),
        ("a = 1\na = 2", "t.toml:2:1: duplicate key"),
        ("chunk_size = \"3 MiB\"", "t.toml:1:14: chunk_size is a power of two from 64 KiB to 64 MiB"),
        ("chunk_size = \"128 MiB\"", "t.toml:1:14: chunk_size is a power of two"),
        ("chunk_size = true", "t.toml:1:14: true is not a size | write a size as"),
        ("cache.limit = \"many\"", "t.toml:1:15: \"many\" is not a size"),
        ("cache.limit = -1", "t.toml:1:15: -1 is not a size"),
        ("cache.limit = 1", "t.toml:1:15: cache.limit is at least 64 MiB"),
        ("rotate = 5", "t.toml:1:10: 5 is not a duration | write a duration as"),
        ("rotate = \"0s\"", "t.toml:1:10: it is at least 1s"),
        ("scrub.every = \"1m\"", "t.toml:1:15: scrub.every is at least 1h"),
        ("scrub.level = \"all\"", "t.toml:1:15: scrub.level is \"list\", \"sample\" or \"deep\""),
        ("bandwidth = \"fast\"", "t.toml:1:13: \"fast\" is no rate: write"),
        ("bandwidth = 1000", "t.toml:1:13: \"1000\" is less than 16 KiB/s"),
        ("bandwidth = \"off\"", "t.toml:1:13: nothing would ever be sent"),
        ("bandwidth = { \"09:00-09:00\" = \"1 MiB/s\" }", "t.toml:1:13: the window \"09:00-09:00\" never opens"),
        ("bandwidth = { nights = \"1 MiB/s\" }", "t.toml:1:13: \"nights\" is no time of the day"),
        ("mountpoint = \"mnt\"", "t.toml:1:14: a path here is absolute"),
        (
            "acknowledge.close = \"lokal\"",
            "t.toml:1:21: \"lokal\" is no acknowledgement policy | did you mean \"local\"?",
        ),
        (
            "acknowledge.fsync = 2\n[target.a]\nuri = \"memory://a\"",
            "acknowledge.fsync wants 2 targets, and there are 1 | no call could ever succeed",
        ),
        ("[target.a]\nregion = \"r\"", "t.toml:1:9: target \"a\" has no uri | add uri = "),
        ("[target.\"a b\"]\nuri = \"fs:///x\"", "t.toml:2:7: \"a b\" is no name for a target"),
        ("[target.a]\nuri = \"s4://b\"", "t.toml:2:7: s4:// is no kind of target | did you mean \"s3\"?"),
        ("[target.a]\nuri = \"/mnt/x\"", "t.toml:2:7: \"/mnt/x\" is no URI | a directory is fs:///mnt/x"),
        ("[target.a]\nuri = \"fs://mnt/x\"", "t.toml:2:7: \"fs://mnt/x\" is no absolute path | a directory is"),
        ("[target.a]\nuri = \"fs:///x\"\nregion = \"r\"", "t.toml:3:1: a directory target has no option \"region\""),
        (
            "[target.a]\nuri = \"s3://b\"\nregoin = \"r\"",
            "t.toml:3:1: target \"a\": s3 has no option \"regoin\" | did you mean \"region\"?",
        ),
        ("[target.a]\nuri = \"s3://b?regoin=r\"", "t.toml:2:7: target \"a\": s3 has no option \"regoin\" | did you"),
        ("[target.a]\nuri = \"s3://b?region=r\"\nregion = \"r\"", "t.toml:3:1: option \"region\" is given twice"),
        ("[target.a]\nuri = \"s3://b\"\nbucket = \"c\"", "t.toml:3:1: option \"bucket\" is given twice"),
        ("[target.a]\nuri = \"s3://b/../c\"\n", ""),
        ("[target.a]\nuri = \"s3://b\"\nregion = [1]", "t.toml:3:10: an option is a string"),
        ("[target.a]\nuri = \"s3://b\"\nregion = { fil = \"x\" }", "t.toml:3:10: an option is a string"),
        ("[target.a]\nuri = \"s3://b\"\nregion = { file = \"/none\" }", "t.toml:3:10: cannot read the value in /none"),
        ("[target.a]\nuri = \"s3://b\"\nregion = \"${TANDEMFS_NONE}\"", "t.toml:3:10: environment variable"),
        ("[target.a]\nuri = \"s3://b\"\nlayout = \"files\"", "t.toml:3:10: layout = \"files\" is not built yet | this"),
        ("[target.a]\nuri = \"fs:///x\"\nconcurrency = 0", "t.toml:3:15: 0 is not a number from 1 to 1024"),
        (
            "[target.a]\nuri = \"s3://b\"\ndisable_config_load = \"maybe\"",
            "t.toml:3:1: target \"a\": option \"disable_config_load\" cannot be",
        ),
    ] {
        if expected.is_empty() {
            // The URL parser resolves `..` itself: what is shown is what is used.
            assert_eq!(parse(text).unwrap().targets[0].uri, "s3://b/c");
            continue;
        }
        let complaint = complaint(text);
        assert!(complaint.starts_with(expected), "{text}\n got: {complaint}\nwant: {expected}");
    }
}

#[test]
fn a_scheme_that_is_not_compiled_in_names_its_feature() {
    for feature in ["azblob", "gcs", "sftp"] {
        let result = argument(&format!("a={feature}://place/x"));
        if let Err(error) = result {
            assert!(error.message.contains("is not in this build"), "{error}");
            assert!(error.hint.unwrap().contains(&format!("--features {feature}")));
        }
    }
}

#[test]
fn t1_targets_at_the_same_place_or_inside_one_another_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| format!("fs://{}/{name}", dir.path().display());
    std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
    let check = |uris: &[String]| {
        let arguments: Vec<String> = uris.iter().enumerate().map(|(n, uri)| format!("t{n}={uri}")).collect();
        Config::from_target_arguments(&arguments).map(drop)
    };
    for (a, b) in [
        (path("x"), path("x")),
        (path("x"), path("x/")),
        (path("x"), path("./x")),
        (path("x"), path("link/x")),
        (path("x"), path("x/deep/below")),
        (path("link/x/below"), path("x")),
        ("s3://b/p".into(), "s3://b/p/".into()),
        ("s3://b".into(), "s3://b/p".into()),
        ("s3://b/p/q?region=a".into(), "s3://b/p?region=b".into()),
        ("s3://b/p?endpoint=http://H:1/".into(), "s3://b/p?endpoint=http://h:1".into()),
        ("memory://m".into(), "memory://m".into()),
    ] {
        let error = check(&[a.clone(), b.clone()]).expect_err(&format!("{a} {b}"));
        assert!(error.message.contains("\"t0\" and \"t1\""), "{error}");
        assert!(check(&[b, a]).is_err());
    }
    check(&[
        path("x"),
        path("xy"),
        "s3://b/p".into(),
        "s3://b/pq".into(),
        "s3://c/p".into(),
        "oss://b/p".into(),
        "s3://b/p?endpoint=http://other".into(),
        "memory://m".into(),
        "memory://n".into(),
    ])
    .unwrap();
    let twice = Config::from_target_arguments(&["a=memory://1", "a=memory://2"]).unwrap_err();
    assert_eq!(twice.message, "two targets are named \"a\"");
    let many: Vec<String> = (0..63).map(|n| format!("t{n}=memory://{n}")).collect();
    assert!(Config::from_target_arguments(&many).unwrap_err().message.contains("at most 62"));
}

#[test]
fn secrets_are_never_shown() {
    let text = r#"
        [target.a]
        uri = "webdav://user:hunter2@dav.example.com:8443/dir?token=hunter3"
        [target.b]
        uri = "s3://b"
        secret_access_key = "hunter4"
    "#;
    let config = parse(text).unwrap();
    let shown = format!("{config:?} {:?}", config.targets.iter().map(|target| &target.uri).collect::<Vec<_>>());
    assert!(!shown.contains("hunter"), "{shown}");
    assert_eq!(config.targets[0].uri, "webdav://dav.example.com:8443/dir?token=***");
    let Location::Service { options, .. } = &config.targets[0].location else { panic!("{config:?}") };
    assert_eq!(options["endpoint"], "https://dav.example.com:8443");
    assert_eq!((options["username"].as_str(), options["password"].as_str()), ("user", "hunter2"));
}

#[test]
fn secrets_on_the_command_line_are_refused_and_not_repeated() {
    for uri in [
        "a=s3://b?secret_access_key=hunter2",
        "a=s3://b?region=r&session_token=hunter2",
        "a=webdav://u:hunter2@h/x",
        "=s3://b?secret_access_key=hunter2",
        "a=s3//b?secret_access_key=hunter2",
        "s3://b?secret_access_key=hunter2",
        "a=s3://u:hunter2@[b",
    ] {
        let error = argument(uri).expect_err(uri);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let hint = argument("a=s3://b?secret_access_key=x").unwrap_err().hint.unwrap();
    assert!(hint.contains("'secret_access_key=${SECRET_ACCESS_KEY}'"), "{hint}");
    // `PATH` is set everywhere, and it is not the point which value it has.
    let target = argument("a=s3://b?secret_access_key=${PATH}").unwrap();
    assert_eq!(target.uri, "s3://b/?secret_access_key=***".replace("b/", "b"));
}

#[test]
fn arguments_are_names_and_uris() {
    let target = argument("home=fs:///mnt/a b?c=%20d").unwrap();
    assert_eq!(target.location, Location::Directory("/mnt/a b?c=%20d".into()), "a path is literal");
    let target = argument("dav=webdav://?endpoint=http://127.0.0.1:8080&root=/backup").unwrap();
    let Location::Service { options, .. } = &target.location else { panic!("{target:?}") };
    assert_eq!((options["endpoint"].as_str(), options["root"].as_str()), ("http://127.0.0.1:8080", "/backup"));
    for bad in ["fs:///x", "a", "a=", "=fs:///x", "a=x", "a=fs://x", "a=fs:///x/../y", "a=s3:///%ff"] {
        assert!(argument(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn memory_targets_of_one_name_are_one() {
    let first = build(&argument("a=memory://config-tests").unwrap(), Pacer::default()).unwrap();
    let second = build(&argument("b=memory://config-tests").unwrap(), Pacer::default()).unwrap();
    first.put("k", vec![1].into(), crate::target::Existing::Refuse).await.unwrap();
    assert_eq!(second.stat("k").await.unwrap(), Some(1));
}

#[tokio::test]
async fn building_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = build(&argument(&format!("a=fs://{}/x", dir.path().display())).unwrap(), Pacer::default()).unwrap();
    assert_eq!(target.get("k", 1).await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn compaction_is_on_and_every_threshold_can_be_set() {
    assert!(parse("").unwrap().compaction.enabled);
    let text = "[compaction]\nenabled = false\nrate = \"5 MiB/s\"\nmin_garbage = \"1 GiB\"\nquiet = \"1h\"\nlag_max = \"1 MB\"";
    let set = Compaction {
        enabled: false,
        rate: 5 << 20,
        min_garbage: 1 << 30,
        quiet: Duration::from_secs(3600),
        lag_max: 1_000_000,
    };
    assert_eq!(parse(text).unwrap().compaction, set);
    assert!(complaint("[compaction]\nrate = \"5 MiB\"").contains("write a rate as \"1 MiB/s\""));
    assert!(complaint("[compaction]\nmin_garbage = \"1 KiB\"").contains("at least 64 KiB"));
    assert!(complaint("[compaction]\nquiet = \"0s\"").contains("at least 1s"));
    assert!(complaint("[compaction]\nrates = 1").contains("unknown key"));
}

#[test]
fn impossible_limits_are_refused_with_what_is_possible() {
    for (text, expected) in [
        ("cache.limit = \"1 MiB\"", "t.toml:1:15: cache.limit is at least 64 MiB"),
        ("cache.min_copies = 0", "t.toml:1:20: 0 is not a number from 1 to 62"),
        (
            "cache.min_copies = 2\n[target.a]\nuri = \"memory://a\"",
            "t.toml:1:20: min_copies is at most the number of targets",
        ),
        ("backlog.records = 1", "t.toml:1:19: 1 is not a number from 100 to 100000000"),
        ("backlog.superseded = \"1 KiB\"", "t.toml:1:22: backlog.superseded is at least 64 KiB"),
        (
            "bandwidth = { \"00:00-12:00\" = \"off\", \"12:00-24:00\" = \"off\" }",
            "t.toml:1:13: nothing would ever be sent",
        ),
        (
            "bandwidth = { \"08:00-12:00\" = \"off\", \"11:00-13:00\" = \"off\" }",
            "t.toml:1:13: the window \"11:00-13:00\" overlaps",
        ),
        ("[target.a]\nuri = \"memory://a\"\nbandwidth = \"1 KiB/s\"", "t.toml:3:13: \"1 KiB/s\" is less than 16 KiB/s"),
    ] {
        let complaint = complaint(text);
        assert!(complaint.starts_with(expected), "{text}\n got: {complaint}\nwant: {expected}");
    }
}
