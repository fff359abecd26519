from deploy.broker.broker import main

main()
